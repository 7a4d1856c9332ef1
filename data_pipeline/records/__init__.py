"""What a record, a tool and a dialogue are, and how they are put into words."""
