"""A server of the OpenAI completions API around a plain language model, as vLLM or SGLang would answer."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


MAX_LOGPROBS = 20


class CompletionsServer:
    """Serves an exported folder.

    Args:
        kind: "vllm" answers for `logprob_token_ids` and names tokens by number; "older-vllm" gives the most likely
            ones alone, and the one drawn before them; "sglang" names tokens by text; "tgi" gives no log-probabilities.
        key: what requests must bring.
        troubles: statuses and headers that the first requests meet in place of an answer.
    """

    def __init__(self, folder, kind="vllm", key=None, troubles=()):
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.kind, self.key, self.troubles, self.delay = kind, key, list(troubles), 0.0
        self.requests, self.under_way, self.most_under_way = [], 0, 0
        self.lock = threading.Lock()

    @contextmanager
    def running(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, {"object": "list", "data": [{"id": "films", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.requests.append(body)
                    owner.under_way += 1
                    owner.most_under_way = max(owner.most_under_way, owner.under_way)
                    trouble = owner.troubles.pop(0) if owner.troubles else None
                time.sleep(owner.delay)
                with owner.lock:
                    owner.under_way -= 1
                if trouble is not None:
                    self.answer(trouble[0], {"error": {"message": "trouble"}}, trouble[1])
                elif owner.key and self.headers.get("Authorization") != f"Bearer {owner.key}":
                    self.answer(401, {"error": "Unauthorized"})
                elif self.path != "/v1/completions" or body["model"] != "films":
                    self.answer(404, {"error": {"message": "The model does not exist."}})
                elif body["logprobs"] > MAX_LOGPROBS and "vllm" in owner.kind:
                    self.answer(400, {"error": {"message": f"max allowed: {MAX_LOGPROBS}"}})
                else:
                    self.answer(200, owner.complete(body))

            def answer(self, status, content, headers=()):
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @torch.inference_mode()
    def complete(self, body):
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            logprobs = self.model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            drawn = int(logprobs.argmin()) if self.kind == "older-vllm" else int(logprobs.argmax())
            best = logprobs.topk(min(body["logprobs"], len(logprobs))).indices.tolist()
            wanted = [drawn, *best]
            if self.kind == "vllm" and "logprob_token_ids" in body:
                wanted = [drawn, *body["logprob_token_ids"]]
            elif self.kind == "sglang":
                wanted = best
            top = {}
            for token in wanted:
                top.setdefault(self.name(token, body), float(logprobs[token]))
            said = {"tokens": [self.name(drawn, body)], "token_logprobs": [float(logprobs[drawn])]}
            said |= {"top_logprobs": [top], "text_offset": [0]}
            said = None if self.kind == "tgi" else said
            choices.append({"index": index, "text": "", "logprobs": said, "finish_reason": "length"})
        return {"object": "text_completion", "model": "films", "choices": choices[::-1]}

    def name(self, token, body):
        by_number = "vllm" in self.kind and body.get("return_tokens_as_token_ids")
        return f"token_id:{token}" if by_number else self.tokenizer.decode([token])
