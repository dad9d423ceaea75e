"""A minute of hostile requests beside a running tune: what is answered, what it costs, whether a heartbeat is late."""
