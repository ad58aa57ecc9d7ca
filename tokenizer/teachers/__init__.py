"""Features that a tokenizer learns to predict, chosen by configuration.

teacher: {type: transformers, source: facebook/dinov2-base}                frames: DINOv2, DINOv3, SigLIP, ViT
teacher: {type: transformers, source: facebook/vjepa2-vitl-fpc64-256}      clips: V-JEPA 2, VideoMAE
teacher: {type: squeezenet, weights: squeezenet1_1.pth}                    small and fast
teacher: {type: module, source: package.module:name}                       any other network
teacher: {type: files, folders: [features/train, features/held_out]}       computed before
"""

from genvid.tokenizer.teachers.base import Teacher as Teacher
from genvid.tokenizer.teachers.base import TeacherConfig as TeacherConfig
from genvid.tokenizer.teachers.networks import ModuleTeacher as ModuleTeacher
from genvid.tokenizer.teachers.networks import ModuleTeacherConfig as ModuleTeacherConfig
from genvid.tokenizer.teachers.networks import SqueezeNetTeacher as SqueezeNetTeacher
from genvid.tokenizer.teachers.networks import TransformersConfig as TransformersConfig
from genvid.tokenizer.teachers.stored import StoredTeacher as StoredTeacher
from genvid.tokenizer.teachers.stored import StoredTeacherConfig as StoredTeacherConfig
