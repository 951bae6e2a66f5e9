"""Who may see which rows: splits by episode, folds, minibatches, normalisers."""
