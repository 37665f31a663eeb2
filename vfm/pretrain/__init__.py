"""`vfm pretrain`: choose a method of pretraining in a pilot, train in rounds, and say whether going on would pay."""
