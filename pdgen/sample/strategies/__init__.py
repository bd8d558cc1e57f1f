"""Ways from a prompt to a picture: process, single pass, planner, inspector, best of n, PARM."""
