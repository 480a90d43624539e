"""What the blueprints and models stand on: settings, connections, security, observation."""
