"""A file of rows -> the same rows with an answer each: `lorakit generate --data`.

    survey      every row is read and its prompt written: what cannot be answered is said now
    answers     windows of rows, in order, into a journal beside the output: what a kill leaves is kept
    output      all columns as they were, the answers beside them, in one file that appears whole

Which rows are computed together depends on their places in the file and on nothing else, so that a
run that was killed and resumed gives the bytes of one that was not.
"""
