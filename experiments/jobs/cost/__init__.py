"""What a training costs, in memory and in time: computed without weights, and measured."""
