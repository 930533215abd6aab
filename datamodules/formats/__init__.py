"""How corpora lie on disk: the released VocalNet layout, files of speech tokens, archives and tables.

One parser reads the items of a list, whoever asks. Files are written whole or not at all by `atomic_files`.
"""
