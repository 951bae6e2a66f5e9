"""The central intervals at which calibration is read; by themselves, so that who draws them loads no PyTorch."""

from __future__ import annotations

LEVELS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
