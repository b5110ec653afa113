"""Schedule-Free optimizers for PyTorch: no learning-rate schedule, no stopping time, averaged weights at every step."""

from unscheduled.algorithms.adamw import AdamWScheduleFree as AdamWScheduleFree
from unscheduled.algorithms.adopt import ADOPTScheduleFree as ADOPTScheduleFree
from unscheduled.algorithms.auto import AutoScheduleFree as AutoScheduleFree
from unscheduled.algorithms.lion import LionScheduleFree as LionScheduleFree
from unscheduled.algorithms.muon import MuonScheduleFree as MuonScheduleFree
from unscheduled.algorithms.radam import RAdamScheduleFree as RAdamScheduleFree
from unscheduled.algorithms.schedulefree_plus import ScheduleFreePlus as ScheduleFreePlus
from unscheduled.algorithms.sgd import SGDScheduleFree as SGDScheduleFree
from unscheduled.algorithms.wrapper import ScheduleFreeWrapper as ScheduleFreeWrapper
from unscheduled.checkpoints.exporting import export_adamw_state_dict as export_adamw_state_dict
from unscheduled.checkpoints.exporting import export_schedulefree_state_dict as export_schedulefree_state_dict
from unscheduled.formulas.averaging import Averaging as Averaging
from unscheduled.formulas.averaging import ExponentialAveraging as ExponentialAveraging
from unscheduled.formulas.averaging import NoAveraging as NoAveraging
from unscheduled.formulas.averaging import PolynomialAveraging as PolynomialAveraging
from unscheduled.formulas.distance import DistanceStep as DistanceStep
from unscheduled.formulas.interpolation import AnnealedInterpolation as AnnealedInterpolation
from unscheduled.formulas.interpolation import ConstantInterpolation as ConstantInterpolation
from unscheduled.formulas.interpolation import GrowingInterpolation as GrowingInterpolation
from unscheduled.formulas.interpolation import Interpolation as Interpolation
from unscheduled.formulas.step_size import ConstantStep as ConstantStep
from unscheduled.formulas.step_size import PolyakStep as PolyakStep
from unscheduled.model.averaged_state import averaged_state_dict as averaged_state_dict
from unscheduled.model.batchnorm import update_bn as update_bn
from unscheduled.model.weight_decay_groups import param_groups as param_groups
from unscheduled.optimizer.base import ScheduleFreeOptimizer as ScheduleFreeOptimizer
from unscheduled.state.parameter import Iterates as Iterates

to_torch = ScheduleFreeOptimizer.to_torch
"""The method :meth:`ScheduleFreeOptimizer.to_torch` as a function."""
