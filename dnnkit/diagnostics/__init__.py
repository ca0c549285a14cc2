"""How the signal travels through a network, and what that means."""

from dnnkit.diagnostics.probe import MEASURES, MOST_SAMPLES, LayerSignal, as_metrics, evenly_spaced, probe
from dnnkit.diagnostics.selu import Condition, far_from_lecun, selu_conditions, selu_line, standardised
from dnnkit.diagnostics.verdicts import Verdict, verdicts

__all__ = [
    "MEASURES",
    "MOST_SAMPLES",
    "Condition",
    "LayerSignal",
    "Verdict",
    "as_metrics",
    "evenly_spaced",
    "far_from_lecun",
    "probe",
    "selu_conditions",
    "selu_line",
    "standardised",
    "verdicts",
]
