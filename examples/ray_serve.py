"""The server of `llamarec-lkg serve` as replicas of a Ray cluster, where one machine is not enough.

    pip install "llamarec-lkg[serve]" "ray[serve]"
    MODEL=you/your-ranker REPLICAS=2 serve run examples.ray_serve:app

Each replica loads the model, gathers its own batches and has its own bounds; Ray spreads requests over them at port
8000, starts replicas anew that die, and lets those that are taken away answer what they took. With GPUs, GPUS=1 gives
one to each.
"""

from __future__ import annotations

import os

from ray import serve

from llamarec_lkg.serving.server.options import ServerOptions
from llamarec_lkg.serving.server.run import load_app


OPTIONS = ServerOptions()


def application():
    """Made in the replica: a loaded model is not sent through the cluster."""
    return load_app(os.environ["MODEL"], options=OPTIONS)


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", 1)),
    ray_actor_options={
        "num_cpus": 1,
        "num_gpus": float(os.environ.get("GPUS", 0)),
        "runtime_env": {"env_vars": {name: os.environ[name] for name in ("MODEL",) if name in os.environ}},
    },
    # more than one batch, so that the next one gathers; what is beyond waits in Ray, and then is answered 503
    max_ongoing_requests=4 * OPTIONS.batch_size,
    max_queued_requests=OPTIONS.queue_size,
    graceful_shutdown_timeout_s=OPTIONS.timeout,
)
@serve.ingress(application)
class Ranking:
    """All it does is in the application."""


app = Ranking.bind()
