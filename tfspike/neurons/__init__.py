"""What are the equations, the layers, the encoders? `gradients` has the mathematics, `layers` the neurons."""
