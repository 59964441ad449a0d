"""Objectives: which data the guide sees, which data the likelihood scores, and what divergence ties them."""

from .chi2 import Chi2 as Chi2
from .conditional_prior import ConditionalPrior as ConditionalPrior
from .dreg import DReG as DReG
from .elbo import TaskELBO as TaskELBO
from .f_divergence import FDivergence as FDivergence
from .f_divergence import alpha_divergence as alpha_divergence
from .info_vae import InfoVAE as InfoVAE
from .iw_em import IWEM as IWEM
from .iwae import IWAE as IWAE
from .kl_schedule import KLSchedule as KLSchedule
from .log_variance import LogVariance as LogVariance
from .npe import NPE as NPE
from .npe import Simulations as Simulations
from .npml import NPML as NPML
from .npvi import NPVI as NPVI
from .pp_avi import PPAVI as PPAVI
from .program import Program as Program
from .program_values import Particles as Particles
from .renyi import Renyi as Renyi
from .rws import ReweightedWakeSleep as ReweightedWakeSleep
from .table import REGISTRY as REGISTRY
from .table import make as make
from .task_objective import BoundTerms as BoundTerms
from .task_objective import TaskObjective as TaskObjective
from .task_objective import log_mean_exp as log_mean_exp
from .tempered_elbo import TemperedELBO as TemperedELBO
