"""Tool calls: how a model writes one, and how they are read from its answer.

form.py     the form in which a chat template writes calls, found by rendering one
reader.py   an answer, piece by piece -> its text and its calls (pure)
values.py   calls as JSON (pure)
"""
