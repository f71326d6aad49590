"""What was found, for programs and for people: a dictionary with a schema, and Markdown, tables and numbers
made of it. It may import evaluation and checkpoints for their words, and files."""
