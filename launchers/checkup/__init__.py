"""``refbert doctor``: is this machine, or that cluster, able to run it?"""
