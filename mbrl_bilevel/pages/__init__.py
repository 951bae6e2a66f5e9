"""A page of one run or several: one HTML file that shows what was run and what came of it, offline."""
