"""Figures of a report: seaborn on matplotlib, each with its alt text, light and dark."""
