"""Whatever acts: explorers, planners, policies. Imports worldsim only."""
