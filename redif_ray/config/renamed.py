"""Keys of earlier versions and their new names. An old key is an error whose message gives the new name."""

RENAMED = {
    "learner.checkpointing": "learner.activation_checkpointing",
    "learner.shard": "learner.fsdp",
    "pipeline.offload": "pipeline.colocate",
    "reward.least": "reward.min_workers",
    "reward.workers": "reward.max_workers",
    "rollout.least": "rollout.min_workers",
    "rollout.shard_groups": "rollout.unit_groups",
    "rollout.workers": "rollout.max_workers",
    "search.descent.told": "search.descent.network_timesteps",
    "search.shard": "search.unit_noises",
    "search.told_trials": "search.network_timestep_trials",
    "student.told": "student.network_timesteps",
}
