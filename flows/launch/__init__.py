"""A PoC run on an EC2 machine of its own: the one on which it is expected to cost the least.

Ray's cluster launcher starts the machine, brings the checkout there and sets it up, by
`infra/ray/machine.yaml` and what `launch_config` adds to it. The run is the same `turbo-vaed poc`.
"""
