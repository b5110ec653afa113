"""Schedule-Free optimizers for PyTorch: no learning-rate schedule, no stopping time, averaged weights at every step."""

from unscheduled.adamw import AdamWScheduleFree as AdamWScheduleFree
from unscheduled.averaging import Averaging as Averaging
from unscheduled.averaging import ExponentialAveraging as ExponentialAveraging
from unscheduled.averaging import NoAveraging as NoAveraging
from unscheduled.averaging import PolynomialAveraging as PolynomialAveraging
from unscheduled.batchnorm import update_bn as update_bn
from unscheduled.checkpoint import export_adamw_state_dict as export_adamw_state_dict
from unscheduled.checkpoint import export_schedulefree_state_dict as export_schedulefree_state_dict
from unscheduled.decay_split import param_groups as param_groups
from unscheduled.evaluation import averaged_state_dict as averaged_state_dict
from unscheduled.handover import to_torch as to_torch
from unscheduled.interpolation import AnnealedInterpolation as AnnealedInterpolation
from unscheduled.interpolation import ConstantInterpolation as ConstantInterpolation
from unscheduled.interpolation import GrowingInterpolation as GrowingInterpolation
from unscheduled.interpolation import Interpolation as Interpolation
from unscheduled.lion import LionScheduleFree as LionScheduleFree
from unscheduled.muon import MuonScheduleFree as MuonScheduleFree
from unscheduled.optimizer import ScheduleFreeOptimizer as ScheduleFreeOptimizer
from unscheduled.radam import RAdamScheduleFree as RAdamScheduleFree
from unscheduled.schedulefree_plus import ScheduleFreePlus as ScheduleFreePlus
from unscheduled.sgd import SGDScheduleFree as SGDScheduleFree
from unscheduled.state import Iterates as Iterates
from unscheduled.step_size import ConstantStep as ConstantStep
from unscheduled.step_size import PolyakStep as PolyakStep
from unscheduled.wrapper import ScheduleFreeWrapper as ScheduleFreeWrapper
