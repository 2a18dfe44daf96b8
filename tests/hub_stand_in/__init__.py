"""A Hub to test against: the client of `huggingface_hub` speaks to it over HTTP."""
