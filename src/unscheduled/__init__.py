"""Schedule-Free optimizers for PyTorch: no learning-rate schedule, no stopping time, averaged weights at every step."""

from unscheduled.adamw import AdamWScheduleFree as AdamWScheduleFree
from unscheduled.averaging import Averaging as Averaging
from unscheduled.averaging import ExponentialAveraging as ExponentialAveraging
from unscheduled.averaging import NoAveraging as NoAveraging
from unscheduled.averaging import PolynomialAveraging as PolynomialAveraging
from unscheduled.batchnorm import update_bn as update_bn
from unscheduled.checkpoint import export_adamw_state_dict as export_adamw_state_dict
from unscheduled.checkpoint import export_schedulefree_state_dict as export_schedulefree_state_dict
from unscheduled.evaluation import averaged_state_dict as averaged_state_dict
from unscheduled.interpolation import AnnealedInterpolation as AnnealedInterpolation
from unscheduled.interpolation import ConstantInterpolation as ConstantInterpolation
from unscheduled.interpolation import Interpolation as Interpolation
from unscheduled.optimizer import ScheduleFreeOptimizer as ScheduleFreeOptimizer
from unscheduled.radam import RAdamScheduleFree as RAdamScheduleFree
from unscheduled.sgd import SGDScheduleFree as SGDScheduleFree
from unscheduled.state import Iterates as Iterates
