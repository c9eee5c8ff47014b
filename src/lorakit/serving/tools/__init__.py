"""Tools: how a model writes a call, how one is read from its answer, and how it is made to write one.

form.py     the form in which a chat template writes calls, found by rendering one
reader.py   an answer, piece by piece -> its text and its calls (pure)
values.py   calls as JSON (pure)
forcing.py  the grammar of an answer that has to call (pure)
"""
