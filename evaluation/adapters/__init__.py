"""Adapters judged: rivals, their training, planted ranks and what ranks a fit uses."""
