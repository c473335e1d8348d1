"""The engine: one scheduler per model, which answers the requests of all threads and event loops in one running batch.

`pool` owns the engines of this process. Everything that is computed happens in the one worker thread of an engine
(`scheduler`), on llama.cpp's own functions (`weights`, `context`, `sampling`, `constraint`). It knows conversations and events,
not LangChain.
"""
