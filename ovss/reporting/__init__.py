"""From counts to results files, tables, figures and verdicts."""
