"""Rule lists shipped with tunproxy: data only."""
