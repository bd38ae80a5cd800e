"""What the five services share: protocol, memory, geometry, engines, telemetry. Never imports services/."""
