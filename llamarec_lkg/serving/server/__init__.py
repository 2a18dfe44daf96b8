"""Answering over HTTP: one model, many clients, shared forward passes."""
