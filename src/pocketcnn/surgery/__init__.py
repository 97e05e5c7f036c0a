"""Putting condensed layers into any net, taking them out again, and recording how the net was made."""

from pocketcnn.surgery.condense import condense, rebuild, rebuild_
from pocketcnn.surgery.materialize import as_served, fold_norm, materialize
from pocketcnn.surgery.plan import Plan, PlanRow, describe, plan
from pocketcnn.surgery.provenance import (
    Provenance,
    Step,
    check_describable,
    provenance,
    record_of,
    remember,
    undescribed,
)
from pocketcnn.surgery.selection import check_step, needs_seed

__all__ = [
    "Plan",
    "PlanRow",
    "Provenance",
    "Step",
    "as_served",
    "check_describable",
    "check_step",
    "condense",
    "describe",
    "fold_norm",
    "materialize",
    "needs_seed",
    "plan",
    "provenance",
    "rebuild",
    "rebuild_",
    "record_of",
    "remember",
    "undescribed",
]
