"""Tools: how a model is made to call one; how calls are written and read is `lorakit.execution.tools`.

forcing.py  the grammar of an answer that has to call (pure)
"""
