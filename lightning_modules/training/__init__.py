"""What training needs beside a loss: optimizers and their schedule, and seeds that are functions of the step."""
