"""How ``tidegate setup`` points a client at the gate, and takes that back."""
