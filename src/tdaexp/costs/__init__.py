"""What a run will cost: counted by hand, stage by stage, from sizes alone."""
