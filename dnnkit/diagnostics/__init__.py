"""How the signal travels through a network, and what that means."""

from dnnkit.diagnostics.divergence import Divergence, find_divergence
from dnnkit.diagnostics.glance import Glance, as_live_metrics, glance
from dnnkit.diagnostics.probe import MEASURES, MOST_SAMPLES, LayerSignal, as_metrics, evenly_spaced, probe
from dnnkit.diagnostics.selu import Condition, far_from_lecun, selu_conditions, selu_line, standardised
from dnnkit.diagnostics.timeline import Event, Silence, timeline
from dnnkit.diagnostics.verdicts import Verdict, verdicts

__all__ = [
    "MEASURES",
    "MOST_SAMPLES",
    "Condition",
    "Divergence",
    "Event",
    "Glance",
    "LayerSignal",
    "Silence",
    "Verdict",
    "as_live_metrics",
    "as_metrics",
    "evenly_spaced",
    "far_from_lecun",
    "find_divergence",
    "glance",
    "probe",
    "selu_conditions",
    "selu_line",
    "standardised",
    "timeline",
    "verdicts",
]
