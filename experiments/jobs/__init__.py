"""Jobs: classes with `run(output_dir)` that are neither a module nor data.

Writers of speech tokens and text states, export, benchmarks and kill trials. A job may be killed and run again: it
keeps what is done. What it returns is written to `finished.json`.
"""
