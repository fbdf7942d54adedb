-- What of a training's storage one machine alone can mount: all its tasks, and all trainings that share it, run there.
ALTER TABLE training ADD COLUMN claims jsonb NOT NULL DEFAULT '[]';
