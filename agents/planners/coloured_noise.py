"""Noise whose power falls with frequency, so that candidate plans move instead of trembling.

Power ∝ frequency^(−β), unit variance at every step; Timmer & König 1995, as used by iCEM.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coloured_noise(shape: tuple[int, ...], beta: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise [..., H, A] of unit variance whose power along H falls as frequency^(−beta).

    Timmer & König 1995: independent Gaussian Fourier coefficients of deviation f^(−beta/2).
    White noise has just such coefficients with a constant deviation, so white noise is filtered.
    Frequency 0 gets the power of the lowest other one, as in the ``colorednoise`` package; but here
    it counts in the normalisation, so that every step has the σ that was asked for.
    """
    white = torch.randn(shape, generator=generator, device=generator.device)
    steps = shape[-2]
    if beta == 0 or steps == 1:
        return white
    frequency = torch.fft.fftfreq(steps, d=1 / steps, device=white.device).abs().clamp(min=1)
    amplitude = frequency ** (-beta / 2)
    # Parseval: the filter multiplies the variance by the mean squared amplitude over all H.
    amplitude = amplitude / amplitude.square().mean().sqrt()
    spectrum = torch.fft.rfft(white, dim=-2) * amplitude[: steps // 2 + 1, None]
    coloured: Tensor = torch.fft.irfft(spectrum, n=steps, dim=-2)
    return coloured
