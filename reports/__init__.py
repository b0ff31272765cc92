"""From result tables to an answer with its uncertainty: statistics, figures, HTML and Markdown.

Reads files only (`DIR/results/`), so results of any trainer can be reported.
"""
