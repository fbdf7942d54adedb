"""elearn in containers, by `make test-compose`: needs a Docker engine and images."""
