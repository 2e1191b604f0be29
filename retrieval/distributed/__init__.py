"""Work that is spread over the nodes of a Ray cluster, or over this machine as one."""
