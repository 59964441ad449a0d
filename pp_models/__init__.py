"""What is believed: priors, likelihoods, models, tasks and data.

Names are loaded when they are first asked for; ``__init__.pyi`` says where each is, one line a name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
