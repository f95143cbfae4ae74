"""What the args mean, subject by subject: each module gives the lines of `config` about one part of the model."""
