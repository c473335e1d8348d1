"""Serving: GGUF models inside LangGraph, in process and offline."""
