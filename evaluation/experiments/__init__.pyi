"""The papers' experiments, each by one name: ``guidebook reproduce nvdp/gp-random``."""

from .experiment import SCALES as SCALES
from .experiment import Check as Check
from .experiment import Outcome as Outcome
from .experiment import Workshop as Workshop
from .experiment import write_outcome as write_outcome
from .reproduction import reproduce as reproduce
from .table import EXPERIMENTS as EXPERIMENTS
from .table import Experiment as Experiment
