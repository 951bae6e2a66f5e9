"""Figures of studies, one file a kind of picture; they need matplotlib (the extra ``[scripts]``)."""
