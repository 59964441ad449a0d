"""Guides over low-rank adapters: LRVD's rank-wise noise on the contract and in peft, and those compared with."""
