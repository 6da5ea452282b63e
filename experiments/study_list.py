"""The studies, by name."""

from __future__ import annotations

from .study import Study
from .study_budgets import WSD_S
from .study_models import ARCHITECTURES_STUDY, NOISE, PAPER, TO_CONVERGENCE, WIDTH
from .study_schedules import SHAPES_STUDY, WSD_VS_COSINE

STUDIES: dict[str, Study] = {
    s.name: s for s in (PAPER, WSD_VS_COSINE, WSD_S, SHAPES_STUDY, ARCHITECTURES_STUDY, WIDTH, TO_CONVERGENCE, NOISE)
}
