"""HTML pages of evaluations: tables, plots and videos in one file."""
